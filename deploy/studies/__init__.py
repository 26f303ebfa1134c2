"""Studies that run as they are; `vitrael demo` takes the first of them."""
