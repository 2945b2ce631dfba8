"""The data and what is optimised: datasets, rigs, Gaussians, densification."""
