"""What everything else stands on: nouns, numbers and networks. Knows no network, no database."""
