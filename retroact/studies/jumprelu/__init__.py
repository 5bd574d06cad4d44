"""Erichson, Yao and Mahoney 2019, JumpReLU: tables 1 to 3 and figures 1 to 9."""
