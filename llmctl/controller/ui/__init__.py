"""The only importer of rich: tables, progress, the live view."""
