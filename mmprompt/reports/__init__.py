"""What reports are drawn with: figures, tables, pages. It knows numbers, not what was measured."""
