"""What runs cost, how fast they were and whether they can be trusted: ours and the published ones, side by side."""
