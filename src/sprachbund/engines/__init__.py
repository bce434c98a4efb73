"""The part of the package that runs models fast: one interface, a torch engine and a native one for CPUs."""
