"""The AstroMAE network: configuration, weights, import of the published checkpoint, and exact folding."""
