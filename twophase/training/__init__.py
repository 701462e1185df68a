"""The image generator, the two networks, fitting, joint evaluation, the operating point, the report."""
