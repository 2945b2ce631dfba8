"""What every part of Mien shares: contracts, errors, maths, io, losses and the training engine."""
