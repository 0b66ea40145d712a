"""The zoo: makers of nets and solvers, and the .prototxt files that they make."""
