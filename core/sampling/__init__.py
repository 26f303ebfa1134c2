"""Diffusion processes as functions: schedules, denoisers, samplers."""
