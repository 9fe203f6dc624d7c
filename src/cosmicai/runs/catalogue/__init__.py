"""The catalogue, the product of a run: its columns, how it is written and read, and its other formats."""
