"""What people look at: pages of HTML in one file each, and the charts on them."""
