"""The panels below the picture: spectra, frames and particles, and what is drawn by hand."""
