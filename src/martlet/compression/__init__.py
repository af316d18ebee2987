"""Making weights smaller, and measuring what that costs."""
