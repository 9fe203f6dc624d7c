"""The program as a library: redshifts of arrays, runs and their catalogues from Python; see `cosmicai`."""
