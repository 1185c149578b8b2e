"""Steps that are left out: what a denoiser computed before serves again, or guidance ends early."""
