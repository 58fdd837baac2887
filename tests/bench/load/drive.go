package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// stall is a gap between two tokens that a reader would call a hang.
const stall = time.Second

// plan is what the clients are to do; each of `streams` sends its next request when the last one has ended.
type plan struct {
	streams, requests, tokens int
	pace                      time.Duration
	token, model              string
	// Fewer events than tokens are no failure: one may carry several.
	merged bool
	// Sent instead of a body of our own.
	body []byte
	// Goes with every request: straight to a replica, which asks for its key.
	headerName, headerValue string
	deadline                time.Duration
}

// seen is what one request showed.
type seen struct {
	first  time.Duration
	gaps   []time.Duration
	tokens int
	err    error
}

type report struct {
	Streams    int      `json:"streams"`
	Requests   int      `json:"requests"`
	Failed     int      `json:"failed"`
	Tokens     int      `json:"tokens"`
	Seconds    float64  `json:"seconds"`
	TokensPerS float64  `json:"tokens_per_s"`
	FirstP50Ms float64  `json:"first_p50_ms"`
	FirstP99Ms float64  `json:"first_p99_ms"`
	GapP50Ms   float64  `json:"gap_p50_ms"`
	GapP99Ms   float64  `json:"gap_p99_ms"`
	Stalls     int      `json:"stalls"`
	AtOnce     int      `json:"at_once"`
	Errors     []string `json:"errors"`
}

func drive(arguments []string) error {
	flags := flag.NewFlagSet("drive", flag.ExitOnError)
	url := flags.String("url", "", "base URL of an OpenAI endpoint")
	target := flags.String("grpc", "", "host:port of a gRPC endpoint")
	method := flags.String("method", "", "full name of the method, with -grpc")
	messageFile := flags.String("message", "", "file with the request's message, with -grpc")
	var work plan
	flags.IntVar(&work.streams, "streams", 1, "requests at a time")
	flags.IntVar(&work.requests, "requests", 1, "requests in all")
	flags.IntVar(&work.tokens, "tokens", 100, "tokens a request")
	flags.DurationVar(&work.pace, "pace", 0, "between two tokens; 0: flat out")
	bodyFile := flags.String("body", "", "file with the request's body, with -url")
	flags.BoolVar(&work.merged, "merged", false, "an event may carry several tokens")
	flags.StringVar(&work.headerName, "header", "", "name of a header (gRPC: of metadata), in lower case")
	flags.StringVar(&work.headerValue, "value", "", "value of that header")
	flags.StringVar(&work.token, "key", "", "bearer token")
	flags.StringVar(&work.model, "model", "bench", "the model asked for")
	flags.DurationVar(&work.deadline, "deadline", 2*time.Minute, "for one request")
	flags.Parse(arguments)
	if *bodyFile != "" {
		body, err := os.ReadFile(*bodyFile)
		if err != nil {
			return err
		}
		work.body = body
	}
	var ask func(context.Context) seen
	if *target != "" {
		message, err := os.ReadFile(*messageFile)
		if err != nil {
			return err
		}
		// A connection a core: one would make its single reader the limit.
		var connections []*grpc.ClientConn
		for len(connections) < 4 {
			connection, err := grpc.Dial(*target, grpc.WithInsecure(), grpc.WithBlock(), grpc.WithTimeout(10*time.Second))
			if err != nil {
				return fmt.Errorf("%s: %w", *target, err)
			}
			connections = append(connections, connection)
		}
		var turn uint32
		ask = func(ctx context.Context) seen {
			connection := connections[atomic.AddUint32(&turn, 1)%uint32(len(connections))]
			return askRPC(ctx, connection, *method, message, work)
		}
	} else {
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: work.streams}}
		ask = func(ctx context.Context) seen { return askHTTP(ctx, client, *url, work) }
	}
	return json.NewEncoder(os.Stdout).Encode(run(work, ask))
}

func run(work plan, ask func(context.Context) seen) report {
	var left, live, most int64 = int64(work.requests), 0, 0
	results := make(chan seen, work.streams)
	var clients sync.WaitGroup
	begun := time.Now()
	for number := 0; number < work.streams; number++ {
		clients.Add(1)
		go func(number int) {
			defer clients.Done()
			if work.pace > 0 {
				// Spread over one token's time, as clients are.
				time.Sleep(work.pace * time.Duration(number) / time.Duration(work.streams))
			}
			for atomic.AddInt64(&left, -1) >= 0 {
				ctx, cancel := context.WithTimeout(context.Background(), work.deadline)
				now := atomic.AddInt64(&live, 1)
				for peak := atomic.LoadInt64(&most); now > peak && !atomic.CompareAndSwapInt64(&most, peak, now); {
					peak = atomic.LoadInt64(&most)
				}
				results <- ask(ctx)
				atomic.AddInt64(&live, -1)
				cancel()
			}
		}(number)
	}
	go func() { clients.Wait(); close(results) }()
	return summed(work, results, begun, &most)
}

func summed(work plan, results <-chan seen, begun time.Time, most *int64) report {
	said := report{Streams: work.streams, Errors: []string{}}
	var firsts, gaps []time.Duration
	for one := range results {
		said.Requests++
		said.Tokens += one.tokens
		if one.err == nil && one.tokens != work.tokens && !work.merged {
			one.err = fmt.Errorf("%d tokens of %d", one.tokens, work.tokens)
		}
		if one.err != nil {
			said.Failed++
			if len(said.Errors) < 3 {
				said.Errors = append(said.Errors, one.err.Error())
			}
			continue
		}
		firsts = append(firsts, one.first)
		gaps = append(gaps, one.gaps...)
		for _, gap := range one.gaps {
			if gap > stall {
				said.Stalls++
			}
		}
	}
	said.Seconds = time.Since(begun).Seconds()
	said.TokensPerS = float64(said.Tokens) / said.Seconds
	said.FirstP50Ms, said.FirstP99Ms = quantile(firsts, 0.5), quantile(firsts, 0.99)
	said.GapP50Ms, said.GapP99Ms = quantile(gaps, 0.5), quantile(gaps, 0.99)
	said.AtOnce = int(atomic.LoadInt64(most))
	return said
}

func quantile(values []time.Duration, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sort.Slice(values, func(i, j int) bool { return values[i] < values[j] })
	return float64(values[int(share*float64(len(values)-1))]) / float64(time.Millisecond)
}

// clocked notes when tokens come.
type clocked struct {
	seen
	asked, before time.Time
}

func (c *clocked) token() {
	now := time.Now()
	if c.tokens == 0 {
		c.first = now.Sub(c.asked)
	} else {
		c.gaps = append(c.gaps, now.Sub(c.before))
	}
	c.before = now
	c.tokens++
}

func askHTTP(ctx context.Context, client *http.Client, url string, work plan) seen {
	body, _ := json.Marshal(map[string]interface{}{
		"model": work.model, "max_tokens": work.tokens, "stream": true,
		"messages": []map[string]string{{"role": "user", "content": work.pace.String()}},
	})
	if work.body != nil {
		body = work.body
	}
	request, err := http.NewRequestWithContext(ctx, "POST", url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return seen{err: err}
	}
	request.Header.Set("Content-Type", "application/json")
	if work.headerName != "" {
		request.Header.Set(work.headerName, work.headerValue)
	}
	if work.token != "" {
		request.Header.Set("Authorization", "Bearer "+work.token)
	}
	clock := clocked{asked: time.Now()}
	answer, err := client.Do(request)
	if err != nil {
		return seen{err: err}
	}
	defer answer.Body.Close()
	if answer.StatusCode != 200 {
		said, _ := io.ReadAll(io.LimitReader(answer.Body, 300))
		return seen{err: fmt.Errorf("HTTP %d: %s", answer.StatusCode, said)}
	}
	lines := bufio.NewReader(answer.Body)
	ended := false
	for {
		line, err := lines.ReadSlice('\n')
		if bytes.HasPrefix(line, []byte("data: [DONE]")) {
			ended = true
		} else if bytes.Contains(line, []byte(`"content":" `)) {
			clock.token()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			clock.err = err
			return clock.seen
		}
	}
	if !ended {
		clock.err = fmt.Errorf("the stream ended without [DONE]")
	}
	return clock.seen
}

func askRPC(ctx context.Context, connection *grpc.ClientConn, method string, message []byte, work plan) seen {
	ctx = metadata.AppendToOutgoingContext(
		ctx, tokensKey, strconv.Itoa(work.tokens), paceKey, work.pace.String())
	if work.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+work.token)
	}
	if work.headerName != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, work.headerName, work.headerValue)
	}
	clock := clocked{asked: time.Now()}
	call, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, grpc.ForceCodec(raw{}))
	if err == nil {
		err = call.SendMsg(&message)
	}
	if err == nil {
		err = call.CloseSend()
	}
	if err != nil {
		return seen{err: err}
	}
	for {
		var got []byte
		err := call.RecvMsg(&got)
		if err == io.EOF {
			return clock.seen
		}
		if err != nil {
			clock.err = err
			return clock.seen
		}
		// The last message bears the finish reason and no token.
		if clock.tokens < work.tokens {
			clock.token()
		}
	}
}
