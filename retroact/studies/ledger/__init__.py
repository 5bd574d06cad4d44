"""The ledger: what changes of a trained network are claimed to do, beside what is left of it under
attacks that know them. Its rules are docs/ledger/protocol.md.

A row of the docket is one file, entry_N_NAME.py: what is tried, how its authors choose its knob,
and the attack that their claim rests on; what they published stands in published.json.
"""
