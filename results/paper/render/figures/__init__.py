"""The paper's figures, drawn by matplotlib from cells and records alone.

Imported only when a figure is wanted: matplotlib is slow to load. Read `draw.draw` first.
"""
