"""A trained model to a complete folder, to the Hub, and to a page that searches with it."""
