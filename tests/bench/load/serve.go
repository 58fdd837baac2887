package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const (
	paceKey   = "bench-pace"
	tokensKey = "bench-tokens"
	// As long as a chunk of vLLM with one token.
	chunk = `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1764000000,"model":%q,` +
		`"choices":[{"index":0,"delta":{"content":%q},"logprobs":null,"finish_reason":null}]}` + "\n\n"
	last = `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1764000000,"model":%q,` +
		`"choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop"}]}` + "\n\n" +
		"data: [DONE]\n\n"
)

// serving is grpc.health.v1.HealthCheckResponse with status SERVING.
var serving = []byte{0x08, 0x01}

// serve is a replica: an OpenAI chat endpoint that streams, and any method of gRPC that streams given bytes.
func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	httpAddress := flags.String("http", "127.0.0.1:0", "where to serve HTTP")
	grpcAddress := flags.String("grpc", "", "where to serve gRPC; empty: nowhere")
	chunkFile := flags.String("chunk", "", "file with the message of one token")
	lastFile := flags.String("last", "", "file with the last message")
	model := flags.String("model", "bench", "the name it serves")
	flags.Parse(arguments)
	failed := make(chan error, 2)
	listener, err := net.Listen("tcp", *httpAddress)
	if err != nil {
		return err
	}
	handler := http.NewServeMux()
	handler.HandleFunc("/v1/chat/completions", chat)
	handler.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })
	handler.HandleFunc("/v1/models", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"object":"list","data":[{"id":%q,"object":"model","created":1764000000,"owned_by":"bench"}]}`, *model)
	})
	go func() { failed <- http.Serve(listener, handler) }()
	if *grpcAddress != "" {
		server, err := rpcServer(*chunkFile, *lastFile)
		if err != nil {
			return err
		}
		rpcListener, err := net.Listen("tcp", *grpcAddress)
		if err != nil {
			return err
		}
		go func() { failed <- server.Serve(rpcListener) }()
	}
	fmt.Println("ready")
	return <-failed
}

type chatRequest struct {
	Model     string `json:"model"`
	MaxTokens int    `json:"max_tokens"`
	// What some routers make of max_tokens.
	MaxCompletionTokens int `json:"max_completion_tokens"`
	Messages            []struct {
		Content string `json:"content"`
	} `json:"messages"`
	Stream bool `json:"stream"`
}

func chat(w http.ResponseWriter, request *http.Request) {
	var asked chatRequest
	if err := json.NewDecoder(request.Body).Decode(&asked); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	if !asked.Stream {
		http.Error(w, "this replica only streams", 400)
		return
	}
	if asked.MaxTokens == 0 {
		asked.MaxTokens = asked.MaxCompletionTokens
	}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	// Two in turn: LiteLLM takes the same chunk a hundred times over for an engine that hangs.
	lines := [2][]byte{}
	for index, word := range []string{" word", " and"} {
		lines[index] = []byte(fmt.Sprintf(chunk, asked.Model, word))
	}
	sent, prompt := 0, ""
	if len(asked.Messages) > 0 {
		prompt = asked.Messages[0].Content
	}
	flusher := w.(http.Flusher)
	gone := stream(asked.MaxTokens, pace(prompt), request.Context().Done(), func() error {
		_, err := w.Write(lines[sent%2])
		sent++
		flusher.Flush()
		return err
	})
	if !gone {
		fmt.Fprintf(w, last, asked.Model)
	}
}

func rpcServer(chunkFile, lastFile string) (*grpc.Server, error) {
	token, err := os.ReadFile(chunkFile)
	if err != nil {
		return nil, err
	}
	end, err := os.ReadFile(lastFile)
	if err != nil {
		return nil, err
	}
	handle := func(_ interface{}, call grpc.ServerStream) error {
		var message []byte
		if err := call.RecvMsg(&message); err != nil {
			return err
		}
		if method, _ := grpc.MethodFromServerStream(call); method == "/grpc.health.v1.Health/Check" {
			return call.SendMsg(&serving)
		}
		given, _ := metadata.FromIncomingContext(call.Context())
		tokens, _ := strconv.Atoi(strings.Join(given.Get(tokensKey), ""))
		every := pace(strings.Join(given.Get(paceKey), ""))
		if stream(tokens, every, call.Context().Done(), func() error { return call.SendMsg(&token) }) {
			return call.Context().Err()
		}
		return call.SendMsg(&end)
	}
	return grpc.NewServer(
		grpc.CustomCodec(raw{}), grpc.UnknownServiceHandler(handle), grpc.MaxConcurrentStreams(1<<20),
	), nil
}

// stream sends so many tokens, one at a time; at a pace each has its own due time, so that lateness does not add up.
// Returns whether the client has left.
func stream(tokens int, every time.Duration, gone <-chan struct{}, send func() error) bool {
	begun := time.Now()
	for number := 1; number <= tokens; number++ {
		if every > 0 {
			select {
			case <-time.After(time.Until(begun.Add(time.Duration(number) * every))):
			case <-gone:
				return true
			}
		}
		if send() != nil {
			return true
		}
	}
	return false
}

func pace(text string) time.Duration {
	every, err := time.ParseDuration(text)
	if err != nil {
		return 0
	}
	return every
}
