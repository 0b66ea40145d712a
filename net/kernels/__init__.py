"""Fast ways to compute what a few layers compute: kernels in C, and what torch.compile makes."""
