// The two ends of `make bench-gateway`: replicas that stream at a given pace, and clients that measure.
//
//	load serve -http 127.0.0.1:9001 -grpc 127.0.0.1:9002
//	load drive -url http://127.0.0.1:8080 -streams 32 -requests 256 -tokens 100 [-pace 20ms]
//	load drive -grpc 127.0.0.1:8080 -method /penstock.v1.InferenceService/StreamChat -message request.bin ...
//
// In Go, because ends in Python would be the limit. Messages of gRPC are bytes to both ends: whoever starts them
// knows the contract. The pace travels with each request (HTTP: as the prompt, the one thing that every router
// hands on; gRPC: in the metadata), so that one replica serves paced runs and runs flat out.
package main

import (
	"fmt"
	"os"
)

// raw passes messages of gRPC through as they are, under the name that peers expect.
type raw struct{}

func (raw) Marshal(v interface{}) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v interface{}) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string   { return "proto" }
func (raw) String() string { return "proto" }

func main() {
	commands := map[string]func([]string) error{"serve": serve, "drive": drive}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: load serve|drive [flags]")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}
