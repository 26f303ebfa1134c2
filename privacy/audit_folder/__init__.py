"""The audit of two folders, real and synthetic, for people who use no federation."""
