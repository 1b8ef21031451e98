package wsframe

import (
	"bytes"
	"testing"
)

// frames are WebSocket frames of every form of length, masked and not.
func frames() [][]byte {
	body := func(n int) []byte { return bytes.Repeat([]byte{0x88}, n) } // looks like a close
	return [][]byte{
		{0x81, 0},
		append([]byte{0x81, 5}, body(5)...),
		append([]byte{0x01, 0x80 | 3, 1, 2, 3, 4}, body(3)...),
		{0x89, 0x80, 9, 9, 9, 9},
		append([]byte{0x82, 126, 1, 0}, body(256)...),
		append([]byte{0x82, 0x80 | 126, 0, 200, 1, 2, 3, 4}, body(200)...),
		append([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 1}, body(65537)...),
		append([]byte{0x80, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 3, 4}, body(2)...),
	}
}

func TestScanner(t *testing.T) {
	all := bytes.Join(frames(), nil)
	for _, piece := range []int{1, 2, 3, 7, 1000, len(all)} {
		var s scanner
		var ends []int
		for at := 0; at < len(all); {
			rest := all[at:min(at+piece, len(all))]
			for len(rest) > 0 {
				n := s.scan(rest)
				if n == 0 {
					t.Fatalf("pieces of %d: nothing taken at %d", piece, at)
				}
				rest = rest[n:]
				at += n
				if s.between() {
					ends = append(ends, at)
				}
			}
		}
		at := 0
		for i, f := range frames() {
			at += len(f)
			if i >= len(ends) || ends[i] != at {
				t.Fatalf("pieces of %d: ends at %v, frame %d ends at %d", piece, ends, i, at)
			}
		}
	}
}

func TestWriterGoesAwayBetweenFrames(t *testing.T) {
	all := bytes.Join(frames(), nil)
	goodbye := []byte{0x88, 2, 0x03, 0xe9}
	var starts []int
	for at, i := 0, 0; i < len(frames()); i++ {
		starts = append(starts, at)
		at += len(frames()[i])
	}
	for cut := 0; cut <= len(all); cut += 1 + cut/50 {
		var got bytes.Buffer
		w := NewWriter(&got, false)
		w.Write(all[:cut])
		w.GoAway()
		for rest := all[cut:]; len(rest) > 0; rest = rest[min(11, len(rest)):] {
			if n, err := w.Write(rest[:min(11, len(rest))]); n != min(11, len(rest)) || err != nil {
				t.Fatalf("Write: %d, %v", n, err)
			}
		}
		want := len(all)
		for _, s := range starts {
			if s >= cut {
				want = s
				break
			}
		}
		if !bytes.Equal(got.Bytes(), append(append([]byte{}, all[:want]...), goodbye...)) {
			t.Fatalf("cut at %d: %d bytes, want %d and a close", cut, got.Len(), want)
		}
		w.GoAway()
		if got.Len() != want+len(goodbye) {
			t.Fatal("said twice")
		}
	}
	var got bytes.Buffer
	NewWriter(&got, true).GoAway()
	b := got.Bytes()
	if len(b) != 8 || b[0] != 0x88 || b[1] != 0x82 || b[6]^b[2] != 0x03 || b[7]^b[3] != 0xe9 {
		t.Errorf("masked: % x", b)
	}
}
