"""Golden tests behind `echat verify`: recorded arrays and ids that this machine has to reproduce."""
