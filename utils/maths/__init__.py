"""Pure functions on tensors: rotations, triangle frames, spherical harmonics, projection, seeded randomness."""
