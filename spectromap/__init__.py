"""spectromap: oxygen-loss maps from X-ray spectromicroscopy of battery cathodes."""

__version__ = "0.1.0.dev0"
