// A client of the Kubernetes API for containers of the tests: one request with the pod's token, as
// somebody with a shell makes it, or one every few seconds, as a workload does.
//
// Each answer is a line of its status, the time at which it was complete and the request; the body
// follows where it is asked for. The exit code is 0 if there was an answer, whatever it says.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

var (
	tokenFile = flag.String("token-file", account+"token", "`file` to read the token from, again for each request")
	token     = flag.String("token", "", "the token itself instead of a file")
	caFile    = flag.String("ca-file", account+"ca.crt", "`file` with the certificates to verify the server by")
	insecure  = flag.Bool("insecure", false, "do not verify the server")
	server    = flag.String("server", "", "the API server's `address`; without it, as pods find it")
	method    = flag.String("method", http.MethodGet, "HTTP method")
	data      = flag.String("data", "", "JSON to send")
	agent     = flag.String("user-agent", "apicall", "user agent to send")
	every     = flag.Duration("every", 0, "go on for ever, once in this time")
	body      = flag.Bool("body", false, "print the answer's body as well")
)

func main() {
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: apicall [options] /api/v1/…")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 || !strings.HasPrefix(flag.Arg(0), "/") {
		flag.Usage()
		os.Exit(2)
	}
	client, err := newClient()
	if err != nil {
		fail(err)
	}
	for {
		err := call(client, flag.Arg(0))
		if *every == 0 {
			if err != nil {
				fail(err)
			}
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		time.Sleep(*every)
	}
}

func newClient() (*http.Client, error) {
	config := &tls.Config{InsecureSkipVerify: *insecure}
	if !*insecure {
		certificates, err := os.ReadFile(*caFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(certificates) {
			return nil, fmt.Errorf("no certificate in %s", *caFile)
		}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}, nil
}

func call(client *http.Client, path string) error {
	bearer := *token
	if bearer == "" {
		content, err := os.ReadFile(*tokenFile)
		if err != nil {
			return err
		}
		bearer = strings.TrimSpace(string(content))
	}
	request, err := http.NewRequest(*method, base()+path, strings.NewReader(*data))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+bearer)
	request.Header.Set("User-Agent", *agent)
	if *data != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	fmt.Println(answer.StatusCode, time.Now().UTC().Format(time.RFC3339Nano), *method, path)
	if *body {
		fmt.Println(string(content))
	}
	return nil
}

func base() string {
	if *server != "" {
		return "https://" + *server
	}
	return "https://" + net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "apicall:", err)
	os.Exit(1)
}
