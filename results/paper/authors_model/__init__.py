"""The authors' own implementation, predicted: memory and times of a device, from a model's shape.

`blocks.py` has the blocks that a rank holds, `memory.py` which of them are there at once,
`schedule.py` when each is loaded and computed, `times.py` the rates that fit the paper's times.
"""
