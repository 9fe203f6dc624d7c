"""The one place where speed is measured: `cosmicai bench`. Every figure comes with its machine; none is guessed."""
