"""The commands of `cosmicai`; each imports what it needs when it runs."""
