"""Pictures of sections and plots, as PNG, WebP or SVG."""
