"""Detection of adversarial images, as the JumpReLU paper's Table 3 has it."""
