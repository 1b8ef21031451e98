//go:build !unix

package h1

const canProbe = false

func readSocket(uintptr, []byte) (int, error)  { panic("h1: no probe on this system") }
func writeSocket(uintptr, []byte) (int, error) { panic("h1: no probe on this system") }
