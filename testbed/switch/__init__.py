"""The user-space switch that emulates links where the kernel cannot: one program, in two languages.

`model.py` says what it emulates; `protocol.py` has its command line and its lines; `switch.py`
joins the two to TAP devices, `switch.c` is the same program in C; `build.py` chooses one.
"""
