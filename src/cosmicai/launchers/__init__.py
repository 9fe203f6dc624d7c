"""Launchers: they decide where ranks run, nothing else. Every rank runs `cosmicai work` on the run folder."""
