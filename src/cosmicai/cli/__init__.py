"""The commands of `cosmicai`; each imports what it needs when it runs, so that the command line starts fast."""
