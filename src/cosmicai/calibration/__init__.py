"""How far to trust a redshift: intervals of measured coverage, and the domain that a network was trained on."""
