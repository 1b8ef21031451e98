package gateway

// isShortOfResources reports whether err is for want of something in this machine. On Plan 9 nothing tells.
func isShortOfResources(error) bool { return false }
