package urlpath

import "testing"

func TestNormalURL(t *testing.T) {
	for raw, want := range map[string]string{
		"https://api.example/a":           "https://api.example/a",
		"HTTPS://API.example:443/a":       "https://api.example/a",
		"http://api.example:80":           "http://api.example/",
		"http://api.example:443/":         "http://api.example:443/",
		"https://api.example/a?b=c#d":     "https://api.example/a",
		"https://api.example/%7Ea%2fb%C3": "https://api.example/~a%2Fb%C3",
		"https://api.example/a/../b":      "https://api.example/a/../b",
		"https://[::1]:443/":              "https://[::1]/",
		"https://api.example/A":           "https://api.example/A",
		"":                                "",
		"/a":                              "",
		"api.example/a":                   "",
		"ftp://api.example/a":             "",
		"https://u@api.example/":          "",
		"https:api.example":               "",
		"https://api.example/%zz":         "",
		"https://api.example/%4":          "",
	} {
		if got, ok := NormalURL(raw); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", raw, got, ok)
		}
	}
}
