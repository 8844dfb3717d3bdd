"""An index for others: over HTTP, with a page, and as a tool of the Model Context Protocol."""
