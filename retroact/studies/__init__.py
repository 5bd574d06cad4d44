"""The two papers, whole: one short file per table or figure, beside the published numbers it is
compared with."""
