"""How foreign an image is: higher is more foreign, everywhere."""
