"""Cross-compiling exported networks and running them on emulated microcontrollers."""
