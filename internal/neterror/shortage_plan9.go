package neterror

// LocalShortage returns false: on Plan 9, errors have no value for a shortage of resources.
func LocalShortage(error) bool { return false }

// BacklogFull returns false: Plan 9 has no Unix sockets.
func BacklogFull(error) bool { return false }
