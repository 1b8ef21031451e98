// Openapi holds requests to an OpenAPI description by github.com/getkin/kin-openapi, before they reach the
// backend. It stands inside Auth and limits, since it reads the body.
package main

import (
	"context"
	_ "embed"
	"errors"
	"log"
	"net/http"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/seed-96248d0c/gateway"
)

//go:embed shop.yaml
var shop []byte

const maxBody = 64 << 10 // held in memory for each request

func newHandler(backend http.RoundTripper) (http.Handler, error) {
	doc, err := openapi3.NewLoader().LoadFromData(shop)
	if err != nil {
		return nil, err
	}
	if err := doc.Validate(context.Background()); err != nil {
		return nil, err
	}
	paths, err := gorillamux.NewRouter(doc)
	if err != nil {
		return nil, err
	}
	var rt gateway.Router
	rt.Use(gateway.Observe(nil))
	rt.Handle("/orders/", gateway.Proxy(backend, nil), validate(paths))
	return &rt, nil
}

// validate refuses what the description does not allow.
func validate(paths routers.Router) gateway.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context()) // for a new body and default values
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			if err := check(paths, r); err != nil {
				gateway.WriteError(w, r, err)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

func check(paths routers.Router, r *http.Request) error {
	route, values, err := paths.FindRoute(r)
	switch {
	case errors.Is(err, routers.ErrMethodNotAllowed):
		return &gateway.Error{Status: http.StatusMethodNotAllowed, Err: err}
	case err != nil:
		return &gateway.Error{Status: http.StatusNotFound, Err: err}
	}
	err = openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: r, Route: route, PathParams: values,
		Options: &openapi3filter.Options{
			AuthenticationFunc:                openapi3filter.NoopAuthenticationFunc, // that is for Auth
			RejectWhenRequestBodyNotSpecified: true,
		},
	})
	if err == nil {
		return nil
	}
	if errors.As(err, new(*http.MaxBytesError)) {
		return gateway.ErrBodyTooLarge
	}
	detail := "The request does not match the description of this API."
	if wrong := new(openapi3filter.RequestError); errors.As(err, &wrong) && wrong.Parameter != nil {
		detail = "The parameter " + wrong.Parameter.Name + " is not as described."
	} else if schema := new(openapi3.SchemaError); errors.As(err, &schema) {
		detail = "The body is not as described: " + schema.Reason + "." // without the value
	}
	return &gateway.Error{Status: http.StatusBadRequest, Detail: detail, Err: err}
}

func main() {
	backend := gateway.NewUpstream("backend", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	h, err := newHandler(backend)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(gateway.Serve(context.Background(), &http.Server{Addr: "127.0.0.1:8080", Handler: h}, nil))
}
