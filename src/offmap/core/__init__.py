"""The vocabulary of offmap: types, errors, contracts. It knows no stage."""
