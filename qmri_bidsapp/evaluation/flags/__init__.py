"""How well flags find what no model describes."""
