"""What the activations of a network say: covariances of channels, sampled positions, batch norm statistics."""
