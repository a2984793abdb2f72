"""Report of an evaluation: one self-contained HTML file with scores, figures and a viewer of the sections."""
