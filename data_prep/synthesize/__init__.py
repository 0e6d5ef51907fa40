"""Small solvers of partial differential equations that write The Well's HDF5."""
